"""Silence that ends."""

import pytest
from transformers.utils import logging

from promptembedder.backbone import quiet_transformers


@pytest.mark.parametrize("verbosity", [logging.INFO, logging.WARNING])
@pytest.mark.parametrize("bars", [True, False])
def test_the_callers_settings_come_back_even_after_an_error(verbosity: int, bars: bool) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        with pytest.raises(RuntimeError), quiet_transformers():
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
            raise RuntimeError
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()
