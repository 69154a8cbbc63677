"""From numbers to tables and figures."""
