"""How a run lives on several processes, and on workers elsewhere."""
