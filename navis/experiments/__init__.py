"""The paper's figures and tables, and ours: one module each."""
