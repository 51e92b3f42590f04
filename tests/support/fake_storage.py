"""Google Cloud Storage on this machine: `python fake_storage.py PORT`, with one bucket, "bucket".

The emulator of the package gcp-storage-emulator, and what it lacks that TensorStore builds on: an
object is written only while its generation is the one asked for, a reader is told the generation,
and a listing can begin and end at a name.
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import HANDLERS, create_server


def generation(storage, bucket, name):
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def asked(request, name):
    return request.query.get(name, [None])[0]


def insert(request, response, storage, *_, **__):
    wanted = asked(request, "ifGenerationMatch")
    bucket, name = request.params["bucket_name"], asked(request, "name")
    if wanted is not None and generation(storage, bucket, name) != wanted:
        response.status = HTTPStatus.PRECONDITION_FAILED
        return
    objects.insert(request, response, storage)


def get(request, response, storage, *_, **__):
    found = generation(storage, request.params["bucket_name"], request.params["object_id"])
    if asked(request, "alt") == "media" and found != "0":
        response["x-goog-generation"] = found
        if asked(request, "ifGenerationNotMatch") == found:
            response.status = HTTPStatus.NOT_MODIFIED
            return
        if asked(request, "ifGenerationMatch") not in (None, found):
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
    objects.get(request, response, storage)


def delete(request, response, storage, *_, **__):
    found = generation(storage, request.params["bucket_name"], request.params["object_id"])
    if asked(request, "ifGenerationMatch") not in (None, found):
        response.status = HTTPStatus.PRECONDITION_FAILED
        return
    objects.delete(request, response, storage)


def ls(request, response, storage, *_, **__):
    objects.ls(request, response, storage)
    if response.status == HTTPStatus.OK:
        answer = json.loads(response._content)
        start, end = asked(request, "startOffset") or "", asked(request, "endOffset")
        answer["items"] = [
            item
            for item in answer["items"]
            if item["name"] >= start and (end is None or item["name"] < end)
        ]
        response.json(answer)


def main():
    ours = {objects.insert: insert, objects.get: get, objects.delete: delete, objects.ls: ls}
    for _, handlers in HANDLERS:
        for method, handler in handlers.items():
            handlers[method] = ours.get(handler, handler)
    create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()


if __name__ == "__main__":
    main()
