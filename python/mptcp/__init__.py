"""Control and measurement of Multipath TCP, subflow by subflow."""
