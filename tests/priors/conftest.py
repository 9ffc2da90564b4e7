from tests.priors.small import *  # noqa: F403  fixtures and a hook
