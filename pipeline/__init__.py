"""The logic of the pipeline: configuration, text, dispatch, engines. No sockets, no processes."""
