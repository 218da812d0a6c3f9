"""The gRPC server shell: errors to status codes, and conversion to and from messages."""
