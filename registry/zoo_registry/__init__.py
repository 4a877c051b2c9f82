"""Records of models and tasks: data only, found through the entry point group zoo.records."""
