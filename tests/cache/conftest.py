"""What holds for every test of this room."""

from hypothesis import HealthCheck, settings

# How long an example takes depends on what else the machine does; pytest's own timeout ends what hangs.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
