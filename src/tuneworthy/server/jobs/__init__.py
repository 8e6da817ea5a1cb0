"""Fine-tuning jobs: uploaded files, a durable queue, and workers in processes of their own."""
