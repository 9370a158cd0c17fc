"""What every service process shares.

A service is its domain code plus this package: settings, telemetry, the gRPC server and channel, status
errors, the SQL engine with group commit, and the change feed. Nothing is re-exported here on purpose: a
process imports only the modules it uses, because start-up time is part of what an operator sees.
"""

import os

# Read when grpc is first imported. Its core repeats on standard error, in a form of its own, what callers are
# told as a status anyway.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
