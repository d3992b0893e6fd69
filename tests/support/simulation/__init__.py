"""A server in one process, on real serving and store code, whose every step can fail, hang or be its last.

Real: the follower, the swap, the start, the last applied release, staging, the workers' remote calls, slots and sites,
the store above its back-end. Simulated: vLLM's engine at its public surface, the back-end's medium, the disk, time.
"""
