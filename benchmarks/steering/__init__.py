"""Steering: does the instruction decide what a vector means, and is it the prompter that decides?"""
