"""What users write with: tasks, steps, contexts and handles.

Law: nothing here knows how a run is executed; it asks the `Host` and the `Scope` of `host.py`.
"""
