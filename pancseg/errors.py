"""The errors a user can meet: one line each, with the exit code the command ends with."""

import errno
from typing import TypeGuard

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class PancsegError(Exception):
    """The command cannot start or go on: says what was found, what was expected, what to do."""

    exit_code = 2


class Incomplete(PancsegError):
    """The work was done except for some of the input; the table says which."""

    exit_code = 1


class Refused(Exception):
    """One series or file cannot be used; the rest of the batch goes on.

    Args:
        code: Reason code in ``snake_case``, the same for every case of its kind.
        sentence: What was found, with numbers.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code


def lacks_room(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether something could not be written because the disk is full or may not be written."""
    return isinstance(error, OSError) and error.errno in NO_ROOM
