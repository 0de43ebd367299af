"""The worker: a supervisor, a spawner, one executor process per queue, and what runs inside them.

``supervisor`` keeps leases and deadlines over its ``lanes``; its ``keepers`` do the duties of ``maintenance``;
``spawner`` forks. In an ``executor``, ``claims`` says when to ask for jobs, ``waiter`` and ``listening`` when to wake
up, ``executors`` where a function runs (``threads``, ``loop``, ``children``), and ``runner`` drives one attempt by
way of ``opening`` and ``reports``. ``slots`` is the memory that they share, ``channel`` how they talk.
"""
