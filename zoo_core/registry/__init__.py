"""From a name to a recipe with its arguments bound: installed plugins, local ones, records, settings. No torch."""
