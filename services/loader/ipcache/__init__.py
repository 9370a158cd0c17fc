"""Which address means which identity, and behind which node it is: from the services into the kernel."""
