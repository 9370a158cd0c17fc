"""What every stream from a service needs: starting over, waiting, how far it has come."""
