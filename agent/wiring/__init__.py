"""Build the agent's objects from its configuration. Below, only agent/config knows agent.toml."""

from agent.wiring.agent import (
    AgentRun as AgentRun,
    agent_run as agent_run,
    backup_resources as backup_resources,
    database_settings as database_settings,
    end_leftovers as end_leftovers,
    engines as engines,
    journal as journal,
    keyring as keyring,
    metrics as metrics,
    path_settings as path_settings,
    restore_resources as restore_resources,
    write_metrics as write_metrics,
)
from agent.wiring.broker_settings import (
    broker as broker,
    control as control,
)
from agent.wiring.stores import (
    catalogue as catalogue,
    login_of as login_of,
    record_cache as record_cache,
    store as store,
    store_account as store_account,
    store_folder as store_folder,
    task_stores as task_stores,
)
