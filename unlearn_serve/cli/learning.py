"""placeholder"""


def add_commands(app): ...
