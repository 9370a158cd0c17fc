"""The node's endpoints: what they are, how they come to be, change, recover and go."""
