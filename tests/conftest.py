import pytest


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    "A folder with a tiny model and a tokenizer that has a chat template."
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from slpo.data import train_tokenizer
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["user: What is 1 plus 1? assistant: It is two, or three."], vocab_size=300)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, eos_token_id=0, bos_token_id=0)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def serve():
    "Starts servers that answer a judge's questions (`test_judge.FakeServer`); they stop with the test."
    from test_judge import FakeServer
    servers = []
    def start(says): servers.append(FakeServer(says)); return servers[-1]
    yield start
    for server in servers: server.shutdown(); server.server_close()
