//! Output buffer and network ports: hold frames until committed; tap, tunnel, in-process switch.
