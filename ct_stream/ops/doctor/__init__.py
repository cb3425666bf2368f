"""What is missing to run for real? A check is a function; the checks that share a connection are a part."""

from ct_stream.ops.doctor.examine import examine
from ct_stream.ops.doctor.part import Check

__all__ = ["Check", "examine"]
