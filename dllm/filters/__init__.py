"""Filters for Learn2PD (arXiv:2509.25188): traces of decoding, the network fitted to them, its threshold, a report."""
