"""The experiments: a module each, named after the figure or table it makes."""
