"""Files from Hugging Face and ModelScope, by the hubs' own clients, which are imported when they are needed.

`reference` names a repository, `hugging_face` and `model_scope` find files in it, `download` fetches a large file and
`small_files` a configuration or tokenizer file, which is kept in the client's own cache.
"""
