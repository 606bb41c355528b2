"""Everything Ray: the runtime adapter, jobs, tuning and the command line."""
