"""The worker: a supervisor, a spawner, one executor process per queue, and what runs inside them.

``supervisor`` keeps leases and deadlines, ``spawner`` forks, ``executor`` claims and settles for one queue,
``executors`` are the three places a function can run, ``runner`` drives one attempt, ``maintenance`` holds the
background duties, ``slots`` the memory they share, ``channel`` how they talk.
"""
