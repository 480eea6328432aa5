"""ONNX Runtime sessions that write their warnings to standard error, for tests that listen."""

from coupled_sampling.backends.ort import session

WARNINGS = 2


def let_sessions_warn(monkeypatch):
    """Have sessions that are opened from now on say what they otherwise keep to themselves."""
    quiet = session.session_options

    def loud(*arguments):
        options = quiet(*arguments)
        options.log_severity_level = WARNINGS
        return options

    monkeypatch.setattr(session, "session_options", loud)
