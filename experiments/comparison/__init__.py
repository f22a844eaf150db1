"""Many runs side by side: reading, refusing, tables, pictures and the interactive page."""
