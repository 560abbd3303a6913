"""The methods of the io service: converted, counted, handed on; one module a service."""
