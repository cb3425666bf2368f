"""Asks the world, DNS, mail servers and the vendor, each within its limits."""
