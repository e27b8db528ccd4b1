"""Proof that the harness works: porting bugs planted one at a time into the Jittor side."""
