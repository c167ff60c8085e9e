"""Commands: one module for each verb, and what they share; configuration stops here."""
