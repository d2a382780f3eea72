"""What is ready to use with Prometheus and Grafana: rules, a dashboard, a scrape configuration."""
