"""Fleet manager: desired state over MQTT, gated rollouts, ingest, API and status page."""
