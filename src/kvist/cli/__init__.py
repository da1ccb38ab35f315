"""The command line: one file a verb. Verbs parse and print; what they do lies below."""
