"""``lluda serve`` over HTTP. Where the rows of the catalogue of bad requests are tested:

* B, HTTP: B1 to B4, B12 http/test_connection.py; B5 http/test_form.py, test_transcriptions.py; B6 http/test_body.py;
  B7, B10, B11 http/test_routes.py; B9 http/test_keys.py; B13 (schemathesis) tests/clients. B8 needs static files,
  which there are none of; its headers are in http/test_routes.py.
* C, requests: test_request_semantics.py; C17 test_speech.py; C18 test_transcriptions.py; C20 http/test_stream.py,
  http/test_keys.py.
* D, media: test_media_faults.py, media/.
* E, overload and faults: E1, E17 test_overload.py (for minutes: make test-slow); E2 tests/engine/test_scheduler.py;
  E3 http/test_stream.py (requests wait for memory, none is put back); E4, E5 test_admission.py, test_broken_off.py;
  E6, E7, E8, E12 test_process.py, test_drain.py (half-written files: tests/files, tests/convert); E9, E10, E11, E13
  test_faults.py (a lost device: test_process.py); E14, E20 test_event_loop.py; E15 test_drain.py; E16
  test_process.py, http/test_form.py; E18 two servers are two ports (test_process.py) and two plans of the free memory
  (tests/engine/loading); E21 tests/backends. E19 realtime/.

After each row: oracle.py.
"""
