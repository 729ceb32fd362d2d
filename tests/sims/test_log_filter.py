"""What the filter makes of real lines of Flower 1.41 and Ray 2.55."""

from sims.processes.log_filter import LogFilter

NODE = "\x1b[36m(ClientAppActor pid=7)\x1b[0m "
INFO, ERROR = "\x1b[92mINFO \x1b[0m:      ", "\x1b[91mERROR \x1b[0m:     "

SERVER_CRASH = f"""{ERROR}Simulation raised an exception
Traceback (most recent call last):
  File "/venv/flwr/simulation/app.py", line 337, in run_simulation_process
    simulation_result = _run_simulation(
                        ^^^^^^^^^^^^^^^^
  File "/tmp/ff-x/apps/ff-flower.ff-flower.0.1.0.401fe7b9/strategies/server_app.py", line 13, in main
    raise failing
{{exception}}
{ERROR}Exit Code: 700

An unhandled exception occurred when running the simulation.

For more information, visit: <https://flower.ai/docs/framework/1.41/en/ref-exit-codes/700.html>
{INFO}
"""

NODE_CRASH = f"""{ERROR}An exception was raised when processing a message by RayBackend
{ERROR}\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=6018, ip=192.0.2.2, actor_id=22, repr=<ClientAppActor object at 0x7f>)
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/tmp/ff-x/apps/ff-flower.ff-flower.0.1.0.b12484de/clients/client_app.py", line 12, in train
    raise ValueError("client trouble")
ValueError: client trouble

The above exception was the direct cause of the following exception:

\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=6018, ip=192.0.2.2, actor_id=22, repr=<ClientAppActor object at 0x7f>)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/venv/flwr/simulation/ray_transport/ray_actor.py", line 65, in run
    raise ClientAppException(str(ex)) from ex
flwr.clientapp.client_app.ClientAppException:\x20
Exception ClientAppException occurred. Message: client trouble
{ERROR}Traceback (most recent call last):
  File "/venv/ray/_private/worker.py", line 1023, in get_objects
    raise value.as_instanceof_cause()
ray.exceptions.RayTaskError(ClientAppException): \x1b[36mray::ClientAppActor.run()\x1b[39m (pid=6018, ip=192.0.2.2)
  File "/tmp/ff-x/apps/ff-flower.ff-flower.0.1.0.b12484de/clients/client_app.py", line 12, in train
    raise ValueError("client trouble")
ValueError: client trouble

The above exception was the direct cause of the following exception:

flwr.clientapp.client_app.ClientAppException:\x20
Exception ClientAppException occurred. Message: client trouble

"""


def quiet(text: str) -> tuple[list[str], list[str]]:
    """Return the lines shown for a whole log, and the errors kept."""
    log = LogFilter()
    shown = [out for line in text.split("\n") for out in log.feed(line)]
    return [*shown, *log.close()], log.errors


def test_the_app_is_heard():
    """Records and prints of server and nodes pass without colour, process number and INFO; other levels keep their name."""
    text = f"INFO :      fit begins\n{NODE}{INFO}node 3: loss 1.5\n{NODE}WARNING :   few images\nrun directory: /runs/a"
    assert quiet(text)[0] == ["fit begins", "node 3: loss 1.5", "WARNING: few images", "run directory: /runs/a"]


def test_noise_is_dropped():
    """What Flower and Ray say of themselves, debug records and deprecation warnings are not shown."""
    text = "\n".join(
        [
            "Using SuperLink: private (127.0.0.1:42)",
            "Successfully started run 42",
            f"{INFO}Starting logstream for run_id `42`",
            f"{INFO}Starting Flower Simulation",
            "\x1b[93mWARNING \x1b[0m:   Since flwr 1.32, default simulated SuperNodes changed from 10 to 2.",
            f"{INFO}\tflwr federation simulation-config @none/default <superlink> --num-supernodes <N>",
            'INFO :      HTTP Request: POST http://127.0.0.1:42/v1/runtime/push-logs "HTTP/1.1 200 OK"',
            "DEBUG :      Initialising: RayBackend",
            f"{INFO}\t├── Number of rounds: 1",
            f"{INFO}aggregate_train: Received 10 results and 0 failures",
            f"{NODE}\x1b[93mWARNING \x1b[0m:   Manually terminating ClientAppActor",
            "/venv/ray/worker.py:2062: FutureWarning: Tip: In future versions",
            "  warnings.warn(",
            "(raylet) the raylet is leaving",
            INFO,
        ]
    )
    assert quiet(text) == ([], [])


def test_what_matters_is_not_noise():
    """Failures that FedAvg counts, and Ray's kills for want of memory, are shown."""
    text = f"{INFO}aggregate_train: Received 8 results and 2 failures\n(raylet) 1 worker killed due to memory pressure (OOM)"
    assert len(quiet(text)[0]) == 2


def test_an_error_of_ours_is_shown_whole():
    """The traceback of an error of this project becomes its message with all lines, without type and place."""
    text = SERVER_CRASH.replace("{exception}", "ff_flower.errors.ConfigError: 'x': must be y; take z\nalso: w")
    assert quiet(text) == (["ERROR: 'x': must be y; take z\nalso: w"], ["'x': must be y; take z\nalso: w"])


def test_any_other_error_is_shown_with_its_place():
    """The traceback of a programming error becomes type, text and the app's own last line."""
    assert quiet(SERVER_CRASH.replace("{exception}", "KeyError: 'loss'"))[1] == [
        "KeyError: 'loss' (strategies/server_app.py, line 13)"
    ]


def test_an_error_is_shown_once():
    """An error that the app logs, that Flower repeats twice, and that two nodes share, is one line."""
    said = f"{ERROR}RunError: 2 nodes answer; 3 must; start more\n"
    crash = SERVER_CRASH.replace("{exception}", "ff_flower.errors.RunError: 2 nodes answer; 3 must; start more")
    assert quiet(said + crash + crash)[0] == ["ERROR: 2 nodes answer; 3 must; start more"]
    assert quiet(NODE_CRASH + NODE_CRASH)[0] == ["ERROR: ValueError: client trouble (clients/client_app.py, line 12)"]


def test_a_traceback_ends_at_the_next_record():
    """What the app says after a traceback is heard."""
    assert quiet(f"{NODE_CRASH}{NODE}{INFO}node 1 goes on")[0][1:] == ["node 1 goes on"]


def test_the_epilogue_does_not_hide_the_cause():
    """When the ClientApp cannot be loaded, the last error is the cause and not Flower's farewell."""
    cause = f'{ERROR}Traceback (most recent call last):\n  File "/venv/flwr/x.py", line 1, in load\nImportError: no torch\n\n'
    end = SERVER_CRASH.replace("{exception}", "RuntimeError: An error was encountered. Ending simulation.")
    assert quiet(cause + end)[1] == ["ImportError: no torch"]


def test_an_open_traceback_is_told_at_the_end():
    """A log that breaks off inside a traceback still yields its error."""
    assert quiet("Traceback (most recent call last):\nOSError: disk full")[0] == ["ERROR: OSError: disk full"]
