"""What the tests of Ray deploy: two replicas of a picture model, one of a text model with a narrow queue."""

__all__ = ["arguments"]


def arguments(words, **changes):
    """What `app_builder` is given."""
    tiny = {"ray_actor_options": {"num_cpus": 0.1}, "graceful_shutdown_wait_loop_s": 0.1}
    narrow = {"num_replicas": 1, "max_ongoing_requests": 1, "max_queued_requests": 1}
    return {
        "models": ["fashion", {"model": str(words), "name": "words", "rows": 1, "deployment": narrow}],
        "rows": 4,
        "threads": 1,
        "deployment": {**tiny, "num_replicas": 2, "max_queued_requests": 64, "health_check_period_s": 1},
        "ingress": tiny,
        **changes,
    }
