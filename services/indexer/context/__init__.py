"""Code for the prompt of a language model: chosen, merged, cited, within a budget of tokens."""
