"""What happened? A report of a run, or of several, as one file of HTML that needs no network.

Synopsis:
    run = read_run("runs/a")
    summarize(run).to_json()                     # how it ended, how good, where the time went
    write_report(["runs/a"], "report.html")      # curves, time line, configuration
    write_report(["runs/a", "runs/b"], "ab.html")
"""

from xtrainer.report.run import ReportError, RunRecord, read_run
from xtrainer.report.summary import Summary, summarize
from xtrainer.report.write import write_report

__all__ = ["ReportError", "RunRecord", "Summary", "read_run", "summarize", "write_report"]
