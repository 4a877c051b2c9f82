"""The files that a plan names, on this machine: pinned, downloaded, hashed, cached."""
