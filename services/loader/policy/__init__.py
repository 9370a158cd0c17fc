"""The node's part in policy: what the policy service says of its subjects, in the kernel."""
