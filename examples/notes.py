"""Texts for the search examples."""

__all__ = ["NOTES"]

NOTES = (
    "heapq.nlargest(n, iterable) returns a list with the n largest elements of the iterable.",
    "json.dumps(obj) writes a Python object as a string in JSON.",
    "shutil.copytree(src, dst) copies a whole folder with everything in it to another place.",
    "time.sleep(secs) suspends the thread that calls it for the given number of seconds.",
    "random.shuffle(x) puts the elements of a list in random order, in place.",
    "textwrap.wrap(text, width) breaks a paragraph into lines of at most width characters.",
    "os.getpid() returns the number by which the operating system knows the present process.",
    "statistics.median(data) returns the middle value of numeric data.",
)
