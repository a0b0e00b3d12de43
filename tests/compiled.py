"""How much a call has XLA compile."""

import jax


def programs_of(call, anew=True):
    """How many programs ``call`` has XLA compile; ``anew``: where nothing was compiled before."""
    if anew:
        jax.clear_caches()
    found = []

    def compiled(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        call()
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
    return len(found)
