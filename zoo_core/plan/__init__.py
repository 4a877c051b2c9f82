"""Trial + registry + catalogue -> Plan, or a refusal with its reason. No torch."""
