"""The differential suite's machinery: a recording backend, raw clients, the proxies' processes and the comparison."""
