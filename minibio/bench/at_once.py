"""A plugin of pytest for `make gpu`: a failure is a line as soon as the test has ended.

pytest names failures at its end, which one that is out of time does not reach: interrupted, its
workers take longer to stop than they may.
"""


class AtOnce:
    """Writes by pytest's own reporter, since what a plugin prints is captured."""

    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report) -> None:
        """Write a test's name and the first line of its error; of a worker's tests too."""
        if report.failed:
            errors = [x[1:].strip() for x in report.longreprtext.splitlines() if x[:1] == "E"]
            reporter = self.config.pluginmanager.get_plugin("terminalreporter")
            line = f"FAILED {report.nodeid} - {(errors or ['no message'])[0]}"
            reporter.write(f"\n{line}\n", flush=True)  # after the letters of the tests before


def pytest_configure(config) -> None:
    """Take part where results are shown, not in a worker."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(AtOnce(config))
