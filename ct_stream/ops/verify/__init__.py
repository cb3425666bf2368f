"""Do spine, topics, ledger and tables agree? The outside checker: it reads everything and changes nothing."""

from ct_stream.ops.verify.kinds import Kind
from ct_stream.ops.verify.report import Example, Found, Report
from ct_stream.ops.verify.run import Limits, verify

__all__ = ["Example", "Found", "Kind", "Limits", "Report", "verify"]
