"""How tests of the command line run it."""

import pytest

from coupled_sampling.cli import main


@pytest.fixture
def command(capsys):
    """``command(*arguments)``: exit code, standard output, standard error."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call
